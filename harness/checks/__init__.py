"""Our numbers against those of others: released code, torch-fidelity, clean-fid, ADM."""
