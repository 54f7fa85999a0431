"""The paper: Model Tinting, one idea a file.

Read in this order: `task_vectors`, `coefficients`, `merging`, `tints`, `tinted_model`, `sampling`,
`objectives`, `schedule`, `optimizers`, `averaging`, `adaptation`. `reference` is the whole loop once more,
plain and slow; `settings` is what can be set; `models`, `matching`, `batch_norm` and `blocks` are about
models as they come.
"""
