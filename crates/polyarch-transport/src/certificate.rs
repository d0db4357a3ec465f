//! What a certificate says: its one name, and what an operator wants to see of it.
//!
//! A certificate of a cluster carries exactly one alternative name, a URI, and no other of any kind. A second name would
//! be a second identity, and which of them counts would depend on who reads it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::identity::{ClusterName, Identity, IdentityParseError};
use crate::tls;

/// Files of certificates and keys are a few kilobytes; more than this is refused unread.
const PEM_FILE_BYTES_MAX: u64 = 256 * 1024;

/// What a certificate is for, as its one alternative name says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// `polyarch://CLUSTER/ca`: the authority of a cluster, which issues the others and never speaks itself.
    Authority(ClusterName),
    /// A node or a client.
    Member(Identity),
}

impl CertificateName {
    /// The cluster that the certificate belongs to.
    pub fn cluster(&self) -> &ClusterName {
        match self {
            Self::Authority(cluster) => cluster,
            Self::Member(identity) => identity.cluster(),
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority(cluster) => write!(f, "polyarch://{cluster}/ca"),
            Self::Member(identity) => identity.fmt(f),
        }
    }
}

impl FromStr for CertificateName {
    type Err = IdentityParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let authority = text.strip_prefix("polyarch://").and_then(|rest| rest.strip_suffix("/ca"));
        match authority {
            Some(cluster) if !cluster.contains('/') => Ok(Self::Authority(cluster.parse()?)),
            _ => Ok(Self::Member(text.parse()?)),
        }
    }
}

/// What an operator wants to know of a certificate file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Whose it is.
    pub name: CertificateName,
    /// The moment from which it is valid.
    pub not_before: SystemTime,
    /// The last moment at which it is valid. Issue a new one before.
    pub not_after: SystemTime,
    /// SHA-256 over the DER form, as 64 lower-case hexadecimal digits: what `openssl x509 -fingerprint -sha256` prints
    /// with colons.
    pub fingerprint_sha256: String,
}

impl CertificateSummary {
    /// Reads a PEM file's text with exactly one certificate. Nothing is verified, least of all who issued it.
    ///
    /// # Errors
    ///
    /// When it is none, or names nobody.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        Ok(Self::from_der(&one_certificate(pem)?)?)
    }

    /// The same of a certificate in DER.
    ///
    /// # Errors
    ///
    /// When it is none, or names nobody.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateNameError> {
        let certificate = parse(der)?;
        let validity = certificate.validity();
        Ok(Self {
            name: name_of(&certificate)?,
            not_before: system_time(validity.not_before)?,
            not_after: system_time(validity.not_after)?,
            fingerprint_sha256: fingerprint_sha256(der),
        })
    }
}

pub(crate) fn fingerprint_sha256(der: &[u8]) -> String {
    tls::sha256(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a certificate file cannot be used. No file was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file is far greater than any certificate. Give the right file.
    #[error("holds more than {max} bytes; it is no certificate or key file")]
    FileTooLarge {
        /// The limit in bytes.
        max: u64,
    },
    /// The file is not PEM, or holds none or several certificates. Give one with exactly one
    /// `-----BEGIN CERTIFICATE-----` block.
    #[error("is not a PEM file with exactly one certificate")]
    NotOneCertificate,
    /// The certificate does not carry exactly one name of ours.
    #[error(transparent)]
    Name(#[from] CertificateNameError),
}

/// Why a certificate identifies nobody. Such a certificate was not made for a cluster; issue one that was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateNameError {
    /// The certificate is not valid X.509.
    #[error("is not a valid X.509 certificate")]
    Malformed,
    /// The certificate has no alternative name.
    #[error("names nobody: it has no subject alternative name")]
    NoName,
    /// The certificate has several alternative names. One certificate is one identity; issue one for each.
    #[error("has {names} subject alternative names; exactly one is allowed")]
    SeveralNames {
        /// How many.
        names: usize,
    },
    /// The one name is a host name, an address or of another kind, but no URI.
    #[error("has a subject alternative name that is no URI; a polyarch:// URI is required")]
    NotAUri,
    /// The one name is a URI, but none of ours.
    #[error("has a URI that is no identity: {0}")]
    Uri(#[from] IdentityParseError),
    /// The certificate is that of an authority where one of a node or client was expected.
    #[error("is the certificate of the authority itself; one of a node or a client is required")]
    IsAuthority,
    /// The certificate is that of a node or client where an authority's was expected.
    #[error("is the certificate of a node or client; the authority's certificate is required")]
    IsNoAuthority,
}

/// The identity in a certificate that was already verified against the authority.
pub(crate) fn identity_of(der: &[u8]) -> Result<Identity, CertificateNameError> {
    match name_of(&parse(der)?)? {
        CertificateName::Member(identity) => Ok(identity),
        CertificateName::Authority(_) => Err(CertificateNameError::IsAuthority),
    }
}

/// The DER form of a certificate's public key, to be compared with that of a key.
pub(crate) fn public_key_of(der: &[u8]) -> Result<Vec<u8>, CertificateNameError> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

pub(crate) fn one_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, CertificateError> {
    let mut certificates = CertificateDer::pem_slice_iter(pem);
    match (certificates.next(), certificates.next()) {
        (Some(Ok(certificate)), None) => Ok(certificate),
        _ => Err(CertificateError::NotOneCertificate),
    }
}

pub(crate) fn read_bounded(file: &File) -> Result<Vec<u8>, CertificateError> {
    let mut bytes = Vec::new();
    file.take(PEM_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > PEM_FILE_BYTES_MAX {
        return Err(CertificateError::FileTooLarge { max: PEM_FILE_BYTES_MAX });
    }
    Ok(bytes)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateNameError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateNameError::Malformed),
    }
}

fn name_of(certificate: &X509Certificate<'_>) -> Result<CertificateName, CertificateNameError> {
    // Also refuses a certificate with the extension twice.
    let extension = certificate.subject_alternative_name().map_err(|_| CertificateNameError::Malformed)?;
    let names = extension.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    match names {
        [] => Err(CertificateNameError::NoName),
        [GeneralName::URI(uri)] => Ok(uri.parse()?),
        [_] => Err(CertificateNameError::NotAUri),
        _ => Err(CertificateNameError::SeveralNames { names: names.len() }),
    }
}

fn system_time(time: ASN1Time) -> Result<SystemTime, CertificateNameError> {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    let moment = if time.timestamp() < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    moment.ok_or(CertificateNameError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_authority_has_a_name_that_is_no_identity() {
        let name: CertificateName = "polyarch://orders/ca".parse().unwrap();
        assert_eq!(name.to_string(), "polyarch://orders/ca");
        assert!(matches!(name, CertificateName::Authority(_)));
        assert!("polyarch://orders/ca".parse::<Identity>().is_err());
        assert!("polyarch://orders/node/ca".parse::<CertificateName>().is_err());
        // A client may be called "ca"; that does not make it an authority.
        let client: CertificateName = "polyarch://orders/client/ca".parse().unwrap();
        assert!(matches!(client, CertificateName::Member(_)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(CertificateSummary::from_der(&bytes).is_err());
            let _ = one_certificate(&bytes);
        }

        #[test]
        fn a_mutated_certificate_never_panics(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
        ) {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = vec![rcgen::SanType::URI("polyarch://c/node/1".try_into().unwrap())];
            let mut der = params.self_signed(&key).unwrap().der().to_vec();
            for (at, value) in flips { let at = at.index(der.len()); der[at] = value; }
            let _ = CertificateSummary::from_der(&der);
        }
    }
}
