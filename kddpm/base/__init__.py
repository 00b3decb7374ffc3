"""What every other wing stands on: errors, checks of arguments, files, memory, progress. Imports nothing of kddpm.

Begin with `errors`: everything that a user can get wrong ends in an `InputError`.
"""
