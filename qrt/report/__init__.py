"""What qrt tells of a model: its nodes, its speed beside others, what quantization did to it. Plain data, which the command line draws."""
