//! `polyarch certs`: authorities and certificates, and all files of a cluster on one machine.

mod dev;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use polyarch_transport::certs::{CertificateFiles, CertificateOptions, create_ca, issue};
use polyarch_transport::{CertificateName, CertificateSummary, ClientName, ClusterName, Identity, describe};

use crate::failure::Failure;
use crate::json::CertificateObject;
use crate::terminal::Output;

pub(crate) use dev::Dev;

/// Make and show certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum Certs {
    /// Make the authority of a new cluster: ca.pem and ca.key
    #[command(after_help = "ca.key is needed to issue certificates and nowhere else: keep it away from the nodes.\n\n\
        Example:\n  polyarch certs ca --cluster orders")]
    Ca {
        /// The cluster's name: letters a-z, digits and `-`
        #[arg(long, value_name = "NAME")]
        cluster: ClusterName,
        #[command(flatten)]
        making: Making,
    },
    /// Issue the certificate of a node: node-<ID>.pem and .key
    #[command(after_help = "Example:\n  polyarch certs node --server-id 1")]
    Node {
        /// The node's number, unique in the cluster, from 1 on
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        server_id: u32,
        #[command(flatten)]
        making: Making,
    },
    /// Issue the certificate of a client: client-<NAME>.pem and .key
    #[command(after_help = "What a client may do is decided by [roles] in the nodes' configuration.\n\n\
        Example:\n  polyarch certs client --name shop")]
    Client {
        /// The client's name: letters a-z, digits, `.`, `_` and `-`
        #[arg(long)]
        name: ClientName,
        #[command(flatten)]
        making: Making,
    },
    /// Show whose a certificate is and how long it is valid
    #[command(after_help = "With --json: {\"name\", \"not_before\", \"not_after\", \"fingerprint_sha256\"}\n\n\
        Example:\n  polyarch certs show certs/node-1.pem")]
    Show {
        /// A certificate, PEM
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write all files of a cluster on this machine, and print the commands that start it
    Dev(Dev),
}

/// Where certificates are made, and how.
#[derive(Debug, Args)]
pub(crate) struct Making {
    /// The directory of the authority and all it issued
    #[arg(long, default_value = "certs")]
    pub(crate) dir: PathBuf,
    /// How long it is valid, in days; no certificate outlives its authority [default: 3650 for an authority, else 825]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) days: Option<u32>,
    /// Replace what exists. A replaced authority makes all that it issued worthless
    #[arg(long)]
    pub(crate) overwrite: bool,
}

impl Making {
    pub(crate) fn options(&self) -> CertificateOptions {
        CertificateOptions { validity_days: self.days, overwrite: self.overwrite, ..CertificateOptions::default() }
    }
}

impl Certs {
    pub(crate) fn run(self, program: &str) -> Result<(), Failure> {
        match self {
            Self::Ca { cluster, making } => {
                written(&create_ca(&making.dir, &cluster, &making.options())?)?;
                crate::terminal::note(
                    "ca.key issues certificates and is needed for nothing else: keep it off the nodes",
                );
                Ok(())
            }
            Self::Node { server_id, making } => {
                let identity = Identity::Node { cluster: cluster_of(&making.dir)?, server_id };
                written(&issue(&making.dir, &identity, &making.options())?)
            }
            Self::Client { name, making } => {
                let identity = Identity::Client { cluster: cluster_of(&making.dir)?, name };
                written(&issue(&making.dir, &identity, &making.options())?)
            }
            Self::Show { file, json } => show(&describe(file)?, json),
            Self::Dev(dev) => dev.run(program),
        }
    }
}

/// The cluster that the authority in a directory belongs to.
fn cluster_of(directory: &Path) -> Result<ClusterName, Failure> {
    let file = CertificateFiles::of_authority(directory).certificate;
    if !file.exists() {
        let hint = "`polyarch certs ca --cluster NAME` makes an authority; --dir says where it is";
        return Err(Failure::usage(format_args!("there is no authority at {}", file.display())).hint(hint));
    }
    Ok(describe(&file)?.name.cluster().clone())
}

fn written(files: &CertificateFiles) -> Result<(), Failure> {
    let mut output = Output::stdout();
    output.line(files.certificate.display())?;
    output.line(files.key.display())?;
    output.flush()
}

fn show(summary: &CertificateSummary, json: bool) -> Result<(), Failure> {
    let object = CertificateObject {
        name: summary.name.to_string(),
        not_before: date_time(summary.not_before),
        not_after: date_time(summary.not_after),
        fingerprint_sha256: summary.fingerprint_sha256.clone(),
    };
    let mut output = Output::stdout();
    if json {
        output.json(&object)?;
        return output.flush();
    }
    let kind = match &summary.name {
        CertificateName::Authority(_) => "authority",
        CertificateName::Member(Identity::Node { .. }) => "node",
        CertificateName::Member(Identity::Client { .. }) => "client",
    };
    output.line(format_args!("{kind}       {}", object.name))?;
    output.line(format_args!("valid      {} to {}", object.not_before, object.not_after))?;
    output.line(format_args!("sha256     {}", object.fingerprint_sha256))?;
    output.flush()
}

/// A moment as RFC 3339 has it, in UTC and whole seconds.
fn date_time(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    };
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's "chrono-compatible low-level date algorithms": eras of 400 years that begin on 1 March.
    let day_0000_03_01 = days + 719_468;
    let (era, day_of_era) = (day_0000_03_01.div_euclid(146_097), day_0000_03_01.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_shown_as_others_show_it() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_764_950_399, "2025-12-05T15:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date_time(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        assert_eq!(date_time(UNIX_EPOCH - Duration::from_secs(1)), "1969-12-31T23:59:59Z");
    }
}
