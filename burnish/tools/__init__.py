"""What the command line does beside training: draw, check, search for codes, measure the embedded
models.
"""
