"""What others read: JSON files, TensorBoard scalars, samples, the log's summary. All below `<root>/.ckptwatch/`."""
