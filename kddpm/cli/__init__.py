"""Code shared by the scripts: flags, one-line errors, picture files.

Uses `base`, `theory`, `data`, `distribution` and `sampling`. Begin with `commands`.
"""
