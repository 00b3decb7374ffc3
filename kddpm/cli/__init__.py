"""What the scripts share: flags, errors in one line, pictures in files. Uses `base`, `theory`, `data`, `sampling`.

Begin with `commands`.
"""
