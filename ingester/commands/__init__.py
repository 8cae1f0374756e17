"""The commands beside `run`: one file a family, each exports what `__main__` adds."""
