"""Sets of images and what feature networks said of them: read, drawn, kept, judged."""
