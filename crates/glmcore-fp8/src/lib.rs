//! glmcore-fp8
