//! `vm metadata`: the JSON document that the guest's metadata service shows.

use std::io::Read;

use clap::{Args, Subcommand};
use fc_proto::control::{GetVMMetadataRequest, SetVMMetadataRequest, UpdateVMMetadataRequest};

use super::{Id, call_error};
use crate::error::CtlError;
use crate::host::Host;
use crate::output::emit;

/// What can be done with metadata.
#[derive(Debug, Subcommand)]
pub enum MetadataCommand {
    /// Print the document.
    #[command(after_help = "Example:\n  firecracker-ctl vm metadata get web")]
    Get(Id),
    /// Replace the document.
    #[command(
        after_help = "Examples:\n  firecracker-ctl vm metadata set web '{\"role\": \"web\"}'\n  firecracker-ctl vm metadata set web - < metadata.json"
    )]
    Set(Document),
    /// Merge into the document (JSON merge patch: null removes a key).
    #[command(after_help = "Example:\n  firecracker-ctl vm metadata update web '{\"role\": null}'")]
    Update(Document),
}

/// A document for a VM.
#[derive(Debug, Args)]
pub struct Document {
    #[command(flatten)]
    vm: Id,
    /// The JSON document; `-` reads it from standard input.
    #[arg(value_name = "JSON")]
    document: String,
}

impl Document {
    fn read(&self) -> Result<String, CtlError> {
        let mut text = self.document.clone();
        if text == "-" {
            text.clear();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(|source| CtlError::Read {
                path: "standard input".to_owned(),
                source,
            })?;
        }
        serde_json::from_str::<serde_json::Value>(&text).map_err(|error| CtlError::Value {
            what: "JSON".to_owned(),
            problem: error.to_string(),
        })?;
        Ok(text)
    }
}

/// Runs a command.
///
/// # Errors
/// Its call's; a document that is no JSON.
pub async fn run(host: &Host, command: &MetadataCommand) -> Result<(), CtlError> {
    match command {
        MetadataCommand::Get(vm) => get(host, &vm.id).await,
        MetadataCommand::Set(document) => {
            let request = SetVMMetadataRequest {
                VMID: document.vm.id.clone(),
                Metadata: document.read()?,
                ..SetVMMetadataRequest::default()
            };
            let control = host.control().await?;
            let answer = control.client.set_vm_metadata(host.context(), &request);
            answer.await.map(drop).map_err(call_error)
        }
        MetadataCommand::Update(document) => {
            let request = UpdateVMMetadataRequest {
                VMID: document.vm.id.clone(),
                Metadata: document.read()?,
                ..UpdateVMMetadataRequest::default()
            };
            let control = host.control().await?;
            let answer = control.client.update_vm_metadata(host.context(), &request);
            answer.await.map(drop).map_err(call_error)
        }
    }
}

async fn get(host: &Host, id: &str) -> Result<(), CtlError> {
    let request = GetVMMetadataRequest {
        VMID: id.to_owned(),
        ..GetVMMetadataRequest::default()
    };
    let control = host.control().await?;
    let answer = control.client.get_vm_metadata(host.context(), &request);
    // It is JSON, for people and programs alike.
    emit(&answer.await.map_err(call_error)?.Metadata);
    Ok(())
}
