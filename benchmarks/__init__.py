"""Speed and memory against PML, faiss and the matmul floor; one file per published result that is reproduced.

Installed as `metricweight._benchmarks`. What was measured, with versions and date, is kept in `results/`.
"""
