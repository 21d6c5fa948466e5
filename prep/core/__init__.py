"""Shared by all packages: parameters, files, errors, table schemas and the Dask pool. Imports no stage."""
