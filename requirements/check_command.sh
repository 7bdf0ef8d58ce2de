#!/usr/bin/env bash
# Check the targets and variables that were typed with make: `make` calls this before anything runs, also under `make -n`.
#
#     check_command.sh "OLD:NEW ..." "TARGET ..." "VARIABLE ..."     what was typed, and names that were renamed
#
# Prints one error line, or nothing. A target must be one of commands.txt: make itself takes any name of a file or folder
# (`make tests`), and does nothing. A variable of the command line must be one that a typed target takes, or a param. The
# environment holds variables of other programs, which are none of make's.
set -euo pipefail
cd "${BASH_SOURCE[0]%/*}"

awk -v renamed="$1" -v goals="$2" -v typed="$3" '
    # Number of letters to insert, delete, change or swap with the next one, to get from a to b; case does not count.
    function distance(a, b,    i, j, cost, d) {
        a = toupper(a); b = toupper(b)
        for (i = 0; i <= length(a); i++) d[i, 0] = i
        for (j = 0; j <= length(b); j++) d[0, j] = j
        for (i = 1; i <= length(a); i++)
            for (j = 1; j <= length(b); j++) {
                cost = substr(a, i, 1) != substr(b, j, 1)
                d[i, j] = least(least(d[i-1, j] + 1, d[i, j-1] + 1), d[i-1, j-1] + cost)
                if (i > 1 && j > 1 && substr(a, i, 1) == substr(b, j-1, 1) && substr(a, i-1, 1) == substr(b, j, 1))
                    d[i, j] = least(d[i, j], d[i-2, j-2] + 1)
            }
        return d[length(a), length(b)]
    }
    function least(a, b) { return a < b ? a : b }
    # The one of `names` with the fewest letters to change, at most `most` of them, by its new name; "" if there is none.
    function nearest(name, names, most,    each, found, best) {
        best = ""
        for (each in names) {
            if (length(name) - length(each) > most || length(each) - length(name) > most) continue
            found = distance(name, each)
            if (found < most || found == most && (best == "" || each < best)) { most = found; best = each }
        }
        return best in now ? now[best] : best
    }
    function letters(name) { return int((length(name) + 2) / 3) }
    function fail(message) { if (!failed) print message; failed = 1; exit }
    function unknown(name,    meant) {
        if (name in param) fail(name "=: make has no such variable. A param has its section before it: " param[name] "=")
        meant = nearest(name, takers, letters(name))
        fail(name "=: make has no such variable. " \
            (meant == "" ? "It takes: " taken ". A param has a dot: optimizer.lr=1e-5" : "Did you mean " meant "=?"))
    }
    BEGIN {
        while ((getline line <"commands.txt") > 0) {
            if (line ~ /^#/) continue
            count = split(line, words, " ")
            takes[words[1]] = " "
            for (i = 2; i <= count; i++) {
                takes[words[1]] = takes[words[1]] words[i] " "
                takers[words[i]] = takers[words[i]] (takers[words[i]] == "" ? "" : ", ") words[1]
            }
        }
        while ((getline line <"../params.yaml") > 0) { # names of params, and the first one that ends so
            if (match(line, /^[a-z_]+:/)) section = substr(line, 1, RLENGTH - 1)
            if (match(line, /^  [a-z_]+:/) && !((name = substr(line, 3, RLENGTH - 3)) in param)) param[name] = section "." name
        }
        count = split(renamed, pairs, " ")
        for (i = 1; i <= count; i++) { split(pairs[i], pair, ":"); now[pair[1]] = pair[2] }

        number = split(goals == "" ? "help" : goals, targets, " ")
        taken = ""
        for (i = 1; i <= number; i++) {
            goal = targets[i]
            if (goal in now) fail("make " goal " has a new name. Run: make " now[goal])
            if (!(goal in takes)) {
                meant = nearest(goal, takes, letters(goal))
                fail("make " goal ": there is no such target. " (meant == "" ? "To list the targets: make" : "Did you mean: make " meant))
            }
            count = split(takes[goal], words, " ")
            for (j = 1; j <= count; j++) if (!((words[j]) in taking)) { taking[words[j]] = 1; taken = taken (taken == "" ? "" : " ") words[j] }
        }
        for (name in now) if (name ~ /^[A-Z]/) takers[name] = ""

        number = split(typed, given, " ")
        for (i = 1; i <= number; i++) {
            if (given[i] in now || !(given[i] in takers)) unknown(given[i])
            if (!(given[i] in taking)) \
                fail(given[i] "=: make " (goals == "" ? "help" : goals) " does not take it, it takes: " (taken == "" ? "no variable" : taken) \
                    ". " given[i] "= is for: " takers[given[i]])
        }
    }'
