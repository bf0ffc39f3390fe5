"""The comparison: the same small model trained with each mechanism, measured, and put into words.

`config` says what can be asked, `plan` freezes the answer, `run` starts one `worker` process a mechanism,
`results` gathers what they wrote, `summary` draws the conclusions.
"""
