"""The generated stubs of the contract, one module for each file under proto/mlxrpc/v1. Written by `make proto`."""
