"""The base of all other wings: errors, checks of arguments and settings, files, memory, progress.

Imports no other wing of kddpm.

Begin with `errors`: every mistake that a user can make raises an `InputError`.
"""
