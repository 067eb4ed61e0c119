"""The paper's own objects, written down as plainly as it defines them, to check everything else against."""
