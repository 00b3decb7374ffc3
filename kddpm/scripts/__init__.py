"""The commands `kddpm-train`, `kddpm-sample` and `kddpm-evaluate`. May use every wing above.

A module a command: `main` is the entry point of the script of the same name at the top level and of the installed
command. `python -m export` is the fourth command. `doctor` is started by `python -m kddpm.doctor`.
"""
