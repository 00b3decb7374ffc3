package android.content.res

import java.io.FileDescriptor
import java.io.InputStream

class AssetFileDescriptor : AutoCloseable {
    val fileDescriptor: FileDescriptor get() = error("a declaration alone")
    val startOffset: Long get() = error("a declaration alone")
    val declaredLength: Long get() = error("a declaration alone")

    override fun close() = error("a declaration alone")
}

class AssetManager {
    fun open(fileName: String): InputStream = error("a declaration alone")

    fun openFd(fileName: String): AssetFileDescriptor = error("a declaration alone")
}
