/** The nonce that this answer's policy asks of styles that scripts insert. */
export const nonce = document.querySelector<HTMLMetaElement>('meta[property="csp-nonce"]')?.nonce ?? "";
