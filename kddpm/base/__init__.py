"""The base of all other wings: errors, argument checks, files, memory, progress. Imports no other wing of kddpm.

Begin with `errors`: every mistake that a user can make raises an `InputError`.
"""
