"""What the shares of reports/eval.json are called, in the report and the model card."""

SHARES = {
    "tool_call_well_formed": "well-formed",
    "tool_call_known_function": "known function",
    "tool_call_fits": "arguments fit",
    "tool_call_exact": "exact",
    "stopped": "stopped by itself",
    "think_balanced": "think tags balanced",
}
RULES = {
    "reasoning_on": "reasons where it should",
    "reasoning_off": "does not reason where it should not",
    "within_budget": "reasoning within the budget",
    "language": "language of the reference",
    "form": "JSON or code as the reference",
    "refusal": "refuses only as the reference",
    "math": "result of the reference",
}
