// Imports a module of static/js as it is: in a copy of the folder with a package.json that says they are modules.

import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"

const folder = mkdtempSync(join(tmpdir(), "modules-"))
process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
cpSync(fileURLToPath(new URL("../../static/js", import.meta.url)), folder, { recursive: true })
writeFileSync(join(folder, "package.json"), '{"type": "module"}')

export const modules = (path) => import(pathToFileURL(join(folder, path)).href)
