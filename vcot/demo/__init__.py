"""The page: an image and a question in, a reply whose boxes are drawn while it is written."""
