"""The stubs that `make proto` generates from `proto/genserve/v1`; not edited by hand."""
