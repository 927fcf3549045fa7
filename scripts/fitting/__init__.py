"""Parts of scripts/fit_profiles: what each kind of kernel table is made of."""
