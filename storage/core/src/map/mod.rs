//! The map from block to location.
