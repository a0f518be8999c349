"""QR and Micro QR codes: drawn, read, and read again under worse conditions."""
