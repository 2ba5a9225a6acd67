//! The metadata calls: a JSON document that the guest can read.

use fc_client::{ApiError, Client};
use serde_json::Value;

use crate::serve::error::{CallError, InvalidRequest, Refusal};

/// SetVMMetadata: replaces the document.
pub async fn set(vmm: &Client, text: &str) -> Result<(), CallError> {
    let document = object(text)?;
    match vmm.put_mmds(&document).await {
        Ok(()) => Ok(()),
        Err(error) => Err(refused(vmm, error).await),
    }
}

/// UpdateVMMetadata: merges into the document (RFC 7396).
pub async fn update(vmm: &Client, text: &str) -> Result<(), CallError> {
    let patch = object(text)?;
    match vmm.patch_mmds(&patch).await {
        Ok(()) => Ok(()),
        Err(error) => Err(refused(vmm, error).await),
    }
}

/// Why the VMM took no document: it is wrong or too large, or the VM has no metadata service or no document yet.
async fn refused(vmm: &Client, error: ApiError) -> CallError {
    let refusal = match (&error, vmm.get_mmds().await) {
        (ApiError::Refused { .. }, Ok(Value::Object(_))) => Refusal::Argument,
        _ => Refusal::State,
    };
    refusal.error()(error)
}

/// GetVMMetadata.
pub async fn get(vmm: &Client) -> Result<String, CallError> {
    let document = vmm.get_mmds().await.map_err(Refusal::State.error())?;
    Ok(document.to_string())
}

fn object(text: &str) -> Result<Value, InvalidRequest> {
    match serde_json::from_str(text) {
        Ok(document @ Value::Object(_)) => Ok(document),
        Ok(_) => Err(InvalidRequest::MetadataNoObject),
        Err(error) => Err(InvalidRequest::Metadata(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects() {
        assert!(object(r#"{"a":{"b":[1,null]}}"#).is_ok());
        for text in ["", "{", "[]", "7", "\"x\"", "null", "{} {}"] {
            let error = object(text).unwrap_err().to_string();
            assert!(error.starts_with("Metadata "), "{text}: {error}");
        }
    }
}
