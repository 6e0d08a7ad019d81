"""Trainings by other libraries. Each file is a script of its own: nothing of mtlkit is in their
environments.
"""
