"""A trained model in the browser: the computations of each tab, and the Gradio page."""
