"""Settings that ship with the package: one YAML file per recipe, its first line what it does."""
