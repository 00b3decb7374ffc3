package android.content.res

import java.io.FileDescriptor
import java.io.InputStream

class AssetFileDescriptor : AutoCloseable {
    val fileDescriptor: FileDescriptor get() = TODO()
    val startOffset: Long get() = TODO()
    val declaredLength: Long get() = TODO()

    override fun close() = TODO()
}

class AssetManager {
    fun open(fileName: String): InputStream = TODO()

    fun openFd(fileName: String): AssetFileDescriptor = TODO()
}
