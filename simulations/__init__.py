"""Programs that use the library as a user would; `simulations/README.md` says what each found."""
