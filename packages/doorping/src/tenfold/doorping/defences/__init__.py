"""Published defences against backdoors, one per file: on the model, on its inputs, on the data set."""
