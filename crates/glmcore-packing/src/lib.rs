//! glmcore-packing
