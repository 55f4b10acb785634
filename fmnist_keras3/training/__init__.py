"""Training: the Trainer, its loop, checkpoints, run directories, callbacks and loggers."""
