"""The five sentences put to networks that are trained: claims with ids `networks/…`, in the order of the sentences."""
