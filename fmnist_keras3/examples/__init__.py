"""What a `Module` can be: each file is one story, run by ``python -m fmnist_keras3.examples.NAME``.

They take Fashion-MNIST from `FMNIST_DATA_DIR` (or what `FashionMNIST` falls back to), print a
figure of merit, and leave a picture in their run. Killed ones go on where they were when they are
started again with the same ``--run_dir``.
"""
