"""The studio: runs in the browser. It reads run directories and imports no training code."""
