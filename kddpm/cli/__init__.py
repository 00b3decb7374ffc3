"""Code shared by the scripts: flags, one-line errors, picture files. Uses `base`, `theory`, `data`, `sampling`.

Begin with `commands`.
"""
