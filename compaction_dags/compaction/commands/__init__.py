"""The commands beside compacting itself: one file a family, each exports what `__main__` adds."""
