"""Names of options in other programs and in the version before, and ours."""

# What users of other programs type: RELION, cryoDRGN, EMAN2, ASPIRE. The empty name leaves the value as an argument.
ALIASES = {
    "--i": "", "--i2": "", "--input": "", "--o": "--output", "--outdir": "--output", "--apix": "--angpix",
    "--Apix": "--angpix", "--random-seed": "--seed", "--continue": "--resume", "--num-epochs": "--epochs",
    "--j": "--threads", "--num-workers": "--threads", "--auto-mask": "--mask=auto", "--adhoc-bfac": "--bfac",
    "--max-threads": "--threads", "--in-mask": "--mask", "--in-3dref": "--compare-to", "--symmetry": "--sym",
    "--pixel-size": "--angpix", "--pixelsize": "--angpix",
    "--data-folder": "--datadir", "--particles-dir": "--datadir",
}  # fmt: skip
# Options that reconstruct had in version 0.1, for its amortized mode.
NOW_SETTINGS = {
    "--group": "encoder.group", "--heads": "encoder.heads", "--decoder": "decoder.kind",
    "--symmetric-loss": "loss.symmetric", "-n": "training.epochs", "--epochs": "training.epochs",
    "-b": "training.batch_size", "--batch-size": "training.batch_size",
}  # fmt: skip
