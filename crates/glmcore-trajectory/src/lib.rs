//! glmcore-trajectory
