#!/usr/bin/env bash
# Check the variables that were typed with make: `make` calls this before anything runs, also under `make -n`.
#
#     check_variables.sh "KNOWN ..." "OLD:NEW ..." "TYPED ..."
#
# Prints one error line, or nothing. A variable of the command line must be known. One of the environment
# (`ROW=50 make repro`) is an error only if it is a known name in other case, or one letter away from it, because an
# environment holds many variables that are not make's.
set -euo pipefail

env -0 | tr '\n\0' ' \n' | awk -v known="$1" -v renamed="$2" -v typed="$3" '
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
    # The name with the fewest letters to change, at most `most` of them; empty if there is none.
    function nearest(name, most,    i, found, best) {
        best = ""
        for (i = 1; i <= count; i++) {
            if (length(name) - length(names[i]) > most || length(names[i]) - length(name) > most) continue
            found = distance(name, names[i])
            if (found <= most) { most = found - 1; best = names[i] }
        }
        return best
    }
    function fail(name, from,    meant) {
        meant = nearest(name, int((length(name) + 2) / 3))
        meant = meant in now ? now[meant] : meant
        print name "=" from ": make has no such variable. " \
            (meant == "" ? "Variables: " known ". A param has a dot: optimizer.lr=1e-5" : "Did you mean " meant "=?")
        failed = 1
        exit
    }
    BEGIN {
        count = split(known, names, " ")
        for (i = 1; i <= count; i++) is_known[names[i]] = 1
        number = split(renamed, pairs, " ")
        for (i = 1; i <= number; i++) { split(pairs[i], pair, ":"); names[++count] = pair[1]; now[pair[1]] = pair[2] }
        number = split(typed, given, " ")
        for (i = 1; i <= number; i++) if (!(given[i] in is_known)) fail(given[i], "")
    }
    /^[A-Za-z_]+=/ && !failed {
        name = substr($0, 1, index($0, "=") - 1)
        if (name in is_known || name ~ /^(DATE|JOB|LAST|MODE|NODE|PART|SORT|STOP)$/) next # names of other programs
        near = nearest(name, 1)
        if (near != "" && (length(near) >= 4 || distance(name, near) == 0)) fail(name, " in the environment")
    }'
