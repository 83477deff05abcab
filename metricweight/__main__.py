from metricweight.cli import main

main()
