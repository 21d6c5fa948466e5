"""A model of the whole pipeline: a project, its source, its history, and what must hold after every step."""
