//! glmcore-data
