"""A trained model in the browser: what each tab computes, and the page around it, made with Gradio."""
