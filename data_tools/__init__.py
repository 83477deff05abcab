"""One converter per data set: raw layout -> manifest. Installed as `metricweight._data_tools`.

This is where data sets are known by name; `metricweight` itself knows none (built-in data apart).
"""
