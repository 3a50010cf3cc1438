"""AutoML for compression: joint search of sparsity, bits and width for the front of accuracy and measured latency."""
