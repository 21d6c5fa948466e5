"""The foundation of all packages: parameters, files, errors, tables, and Dask's workers. It imports no stage."""
